"""Methods that AIM is compared with, and the reference implementation of AIM's own equations."""
