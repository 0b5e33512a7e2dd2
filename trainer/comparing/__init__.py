"""Reads run folders in any state, and compares them in tables. Imports no torch until answers
are compared image by image.
"""
