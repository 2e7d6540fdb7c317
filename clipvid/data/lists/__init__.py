"""Lists of videos: sources, tables, class lists, checks and the files of public data sets."""
