"""Entry of the nnU-Net release: `python -m msfl.learning.nnunet --role worker …` (see `msfl.learning.serve`)."""

if __name__ == "__main__":
    from msfl.learning.nnunet.model import NnUNet
    from msfl.learning.serve import serve

    serve(NnUNet())
