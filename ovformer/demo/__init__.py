"""What people look at: the output video, the HTML page of results, the page of tools/app.py."""
