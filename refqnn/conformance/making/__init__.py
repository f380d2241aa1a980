"""What only generates the suite: its questions, their answers by a second route, the files.

It imports the kit; the kit imports nothing from here.
"""
