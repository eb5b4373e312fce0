"""Pages for people: reports as single HTML files, and the dashboard over run folders.

page cells charts assets            one page from a title and sections; every HTML report is made by it
reader records sweeps               what run and sweep folders hold, read again only where it changed
index_page run_page sweep_page      the dashboard's pages; sweep_charts, axes and importance draw a sweep,
                                    confirmation_part has its verdict
server dashboard                    over HTTP, or as a file: jobs/dashboard.py
"""
