"""Who waits, counts and hands over. Private; read ``item.py`` first."""
