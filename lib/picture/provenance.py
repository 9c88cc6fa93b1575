"""Marks a PNG as made by a model, in the way that search engines and social networks read.

What happens to the marks of origin that Google puts into a picture:

- **SynthID**, a watermark in the pixels, is kept: the pixels are not changed.
- **The C2PA manifest**, Google's signed statement inside the file, is dropped. It signs the bytes
  of the file that Google sent; copied into another file, it would read as tampered with.
- **Added:** XMP with the IPTC property *Digital Source Type* set to ``trainedAlgorithmicMedia``,
  "created using generative AI", in every PNG. It names no person, prompt or model, and is not
  signed: a marking, not a proof. Tools that strip metadata remove it.

The providers of systems that generate images must mark them in a machine-readable format in the EU
since August 2026 (Regulation 2024/1689, article 50(2)); customers may have duties of their own, and
should leave the XMP in place.

Sources: IPTC Photo Metadata Standard, "Digital Source Type"; cv.iptc.org/newscodes/
digitalsourcetype; XMP part 1 (ISO 16684-1), section 7, and part 3, "PNG"; PNG (W3C), section
11.3.3.4.
"""

__all__ = ["DIGITAL_SOURCE_TYPE", "PROVENANCE_CHUNK"]

DIGITAL_SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
_XMP = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
    '<x:xmpmeta xmlns:x="adobe:ns:meta/">'
    '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about=""'
    ' xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"'
    f' Iptc4xmpExt:DigitalSourceType="{DIGITAL_SOURCE_TYPE}"/>'
    "</rdf:RDF></x:xmpmeta>"
    '<?xpacket end="r"?>'
)
# After the keyword: not compressed, by no method, in no language, with no translated keyword.
PROVENANCE_CHUNK = (b"iTXt", b"XML:com.adobe.xmp\0" + b"\0\0" + b"\0" + b"\0" + _XMP.encode())
"""The type and data of the PNG chunk, about 400 bytes, the same for every picture."""
