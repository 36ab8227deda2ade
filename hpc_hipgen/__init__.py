"""Text-to-image generation of canine hip radiographs whose Norberg angles are asked for."""
