"""Workers on Horovod: of this machine by its own launcher, of several hosts through horovodrun."""
