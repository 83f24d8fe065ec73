"""
What all parts share: names, files, devices and processes. It knows none of them.

Import from its modules: commands that need no PyTorch import some of them.
"""
