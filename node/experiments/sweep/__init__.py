"""Many experiments from one file: a grid of settings × methods × learning rates × seeds.

    grid      the file: [sweep], its rows and cells. Pure
    code      what of this program a cell's figures depend on
    cell      one experiment's figures, from its journals and summary
    folder    what is kept of a sweep: a file per finished cell, whole or not there
    loop      which cell comes next; what is shown meanwhile
    workers worker raycluster   where cells are run: processes of this machine, or a Ray cluster

`node.experiments.report` makes tables, plots and a page of a folder.
"""
