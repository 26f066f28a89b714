"""What several scripts of tools/ share, or what one of them is made of."""
