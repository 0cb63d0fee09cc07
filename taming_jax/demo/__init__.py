"""Opens a page in the browser on which one paints with a run of the second stage, or one of several.

asked: what a run lets one choose, and what was chosen as arguments, a command, Python. drawn: uploads, drawings and
masks as files. painted: the painting, bit by bit, and its gallery. page: the layout.
"""
