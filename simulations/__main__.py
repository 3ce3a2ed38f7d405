"""``python -m fedcurv.simulations`` is ``fedcurv-simulate``."""

from fedcurv.simulations.run import main

main()
