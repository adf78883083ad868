"""Old build + new build: match, compare, verdict, edits.  Pure functions over :mod:`hotupgrade.binary`."""
