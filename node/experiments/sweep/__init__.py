"""Many experiments from one file: a grid of settings × methods × learning rates × seeds.

    grid      the file: [sweep], its rows and cells. Pure
    code      what of this program a cell's figures depend on
    trial     one cell: an experiment's figures, from its journals and summary
    folder    what is kept of a sweep: a file per finished cell, whole or not there
    loop      which cell comes next; what is shown meanwhile
    estimate  how long the cells that are left will take
    results   the figures of a row's cells, and the rate that was chosen
    workers worker raycluster   where cells are run: processes of this machine, or a Ray cluster

`node.experiments.report` makes tables, plots and a page of a folder.
"""
