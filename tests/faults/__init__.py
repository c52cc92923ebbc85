"""Faults that are injected into runs of several workers, and one oracle for all of them.

job.py         the run that they happen to
trial.py       one fault's try: the commands, what is planted in them, how often it struck
oracle.py      what has to be the same as in the run that nothing happened to
deaths.py, stops.py, storage.py, network.py, clocks.py, sizes.py
               the faults
catalogue.py   all of them; which are drawn for a test run
table.py       what was recorded in results/, as the README shows it
__main__.py    `make faults`: all of them, and a record
"""
