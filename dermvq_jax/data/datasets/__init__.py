"""One module for each dataset of images, and what they share.

`builder` has their base class; its docstring says how to add a dataset.
`archives` finds files and reads tables, `isic` has what HAM10000 and the ISIC
challenges share, `people` has conditions, and `drawing` has the tools of
`synthetic_dermoscopy`.
"""
