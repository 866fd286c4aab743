"""What reshaping linear layers to tensors gains over a truncated SVD: the study of the paper's second open question."""
