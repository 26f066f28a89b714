"""What tools/check_setup.py looks at."""
