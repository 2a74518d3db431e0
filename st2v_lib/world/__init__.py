"""The sprite world: endless captioned videos with exact truth, and a reader that scores generated ones."""
