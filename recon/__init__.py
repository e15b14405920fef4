"""Images from listmode PET, and what to make of them."""
