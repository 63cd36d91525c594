"""What a training loop needs: data order, optimiser, EMA, guard, checkpoints, run directory. The loops are jobs."""
