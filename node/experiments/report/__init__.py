"""What a sweep's folder says: tables, plots, files for other programs, one page.

aggregate rows and their figures, from the records
tables    report as grids of text; for terminals and Markdown
plots     report as SVG or PNG (matplotlib, the extra [report])
files     results.json and parquet
page      one self-contained HTML file
"""
