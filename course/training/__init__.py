"""Train the reference model on text that is always there.

corpus       the embedded corpus, files and folders, training and validation documents
bpe          byte-pair encoding, written to be read
tokenizer    text to ids and back; the `tokenizers` library beside it
data         a corpus as token ids, cached; batches
schedule     warm-up and cosine
trainer      AdamW, clipping, evaluation; settings
checkpoint   a run on disk
log          one row a step
plot         losses as pictures, live in a notebook
command      what `course train` does
generation   what `course generate` does, with a run or with open weights
"""
