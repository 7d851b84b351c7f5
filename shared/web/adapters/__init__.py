"""Other services' APIs over the same pipeline, for clients that people have: translation alone.

base.py           what an adapter is, and our own API as one
huggingface.py    text-embeddings-inference's `/predict`, and the task of Hugging Face's API at `/`
v2.py tensors.py  the Open Inference Protocol, version 2, of KServe and Triton; its texts and numbers as bytes
routes.py         their paths
"""
