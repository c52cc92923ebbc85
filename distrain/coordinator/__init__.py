"""What steers a run: its metrics, its verdicts, its folder and its log."""
