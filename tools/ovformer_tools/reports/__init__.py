"""The pictures of tools/make_report.py."""
