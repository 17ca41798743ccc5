"""HOW IT IS LEARNED: one file for each DVC stage, named as the stage.

validate, label, sequence, train, evaluate, register; and the commands around them (`run`, `data`,
`score`). The only room that reads `params.yaml`; the graph itself is declared in `dvc.yaml`.
"""
