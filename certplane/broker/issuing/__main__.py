"""`python -m certplane.broker.issuing DESCRIPTOR PARENT VERSION`: started by the broker, of no use to anybody else."""

from certplane.broker.issuing.program import main

if __name__ == "__main__":
    main()
