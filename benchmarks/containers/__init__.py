"""Is every video read as FFmpeg plays it: the same frames, in the same order, at the same times?"""
