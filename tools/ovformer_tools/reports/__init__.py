"""The figures and the template of tools/make_report.py."""
