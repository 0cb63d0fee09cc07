"""Reports runs: their last figures on the terminal, and a page in HTML for each, with an index over all.

events: pictures and histograms in event files. run: what a run directory tells. base: its config beside that of a file,
and the commands that repeat it. lines: the terminal. chart: curves as SVG. pictures: what is embedded. page: the HTML
of a run, with `page.html`, `style.css` and `script.js`. index: that over several.
"""
