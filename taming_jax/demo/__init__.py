"""Opens a page in the browser on which one paints with a run of the second stage, or one of several.

    python -m taming_jax.demo --workdir=runs/openmoji_transformer
    python -m taming_jax.demo --workdir=runs --port=8000

The page shows the controls that the run has: classes, a picture or a drawing, a caption, the boxes of a scene; a
picture of which a part stays. It shows the command and the Python that paint the same, and saves what was painted.

asked: what a run lets one choose, and what was chosen as arguments, a command, Python. page: the layout.
"""
