"""Training on folders of video files: what ``pip install peft-aim[video]`` adds to the core.

``decode`` reads frames, ``sampling`` says which, ``folder`` finds the files, ``transforms`` prepares clips,
``backbones`` loads the image model, ``train`` puts them together with transformers' Trainer, and ``demo`` (with
``digits``, ``swap`` and ``picture``) shows it all on videos that it draws itself.
"""
