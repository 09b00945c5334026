"""How large an asset may be before a worker is asked to open it. Standard library only."""

MAX_BYTES = 1_000_000_000
"""Of one file; larger ones would not fit beside others in a worker's memory."""

MAX_JSON_BYTES = 100_000_000
"""Of a glTF's JSON, which costs ten times as much once parsed."""

MAX_FACES = 4_000_000
"""Triangles of one asset, every instance counted; more would need over 8 GB in a worker."""

MAX_NODES = 1_000_000

MAX_NODE_DEPTH = 400
"""Nesting of a glTF's nodes; the importer calls itself once a level."""

MAX_ELEMENTS = 200_000_000
"""Numbers in all accessors of one glTF."""

MAX_IMAGE_SIDE_PX = 32_768
MAX_IMAGE_PIXELS = 134_217_728
"""Of one image: 16384 x 8192, half a gigabyte once decoded."""

MAX_ALL_PIXELS = 4 * MAX_IMAGE_PIXELS
"""Of all images of one asset."""

MAX_ARCHIVE_MEMBERS = 10_000
MAX_ARCHIVE_RATIO = 200
"""Bytes unpacked for one byte packed; honest data seldom reaches 20."""
