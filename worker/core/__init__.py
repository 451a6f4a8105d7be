"""The kernel that all programs share and that imports none of them."""
