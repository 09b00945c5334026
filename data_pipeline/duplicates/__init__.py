"""Find assets that are one another's copies or variants, and the groups that splits respect.

Three degrees, each contained in the next:

    identical   the files have the same SHA-256; found before anything is rendered
    copies      same shape, same place in the unit cube, same look: one of them is enough
    groups      same shape up to details, whatever its colours: never parted by a split
"""
