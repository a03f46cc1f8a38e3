"""The demo: a data set and a frozen image trunk that are made in seconds, of which no single frame tells the class."""
