"""Radio recordings and what is made of them: SigMF files, spectrogram tiles and their labelled boxes."""
