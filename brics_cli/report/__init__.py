"""`brics report`: one HTML page of what is on disk. Nothing is trained, sampled or downloaded, and torch is loaded only
where codes are decoded or a bottleneck's use of its tables is counted.

`gathering` finds what is to be shown and what it was made from; one file per chapter makes its blocks of it
(`collection`, `autoencoder`, `codes`, `diffusion`, `scores`, `making`); `blocks` says what blocks there are,
`pictures` and `plots` draw, `writing` renders `templates/page.html.j2` at the finest detail that fits the size asked
for. Everything that came from a file name, a class or a config is text until jinja2 escapes it.
"""
