"""Live video: classify what a camera, a stream or a file that is still being written shows now.

A thread reads and decodes the source and takes frames from it; the main thread scores them.
"""
