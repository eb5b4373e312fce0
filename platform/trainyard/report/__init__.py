"""Pages for people: reports as single HTML files, and the dashboard over run folders.

page.py      one page from a title and sections; every HTML report of the project is made by it
charts.py    the charts that go into sections
"""
