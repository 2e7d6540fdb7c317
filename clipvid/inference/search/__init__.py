"""Search in videos by text and example: windows of a folder of videos as features in an index on disk."""
