package wire

import (
	"bytes"
	"unicode/utf16"
	"unicode/utf8"
)

// joinSurrogates turns surrogates that were encoded on their own, three bytes
// each, into the UTF-8 of the character they make up, and a lone one into U+FFFD.
// The browser SDK sends all characters above U+FFFF so in base64: it encodes UTF-16
// units one by one (mixpanel-js: utf8Encode in src/utils.js). Works in place.
func joinSurrogates(b []byte) []byte {
	// ED is the first byte of U+D000 to U+DFFF only.
	at := bytes.IndexByte(b, 0xED)
	if at < 0 {
		return b
	}
	out := b[:at] // what is written never overtakes what is read
	for i := at; i < len(b); {
		first := surrogate(b[i:])
		if first == 0 {
			out = append(out, b[i])
			i++
			continue
		}
		i += 3
		r := utf16.DecodeRune(first, surrogate(b[i:]))
		if r != utf8.RuneError {
			i += 3
		}
		out = utf8.AppendRune(out, r)
	}
	return out
}

// surrogate is the surrogate whose three bytes b begins with, 0 for none.
func surrogate(b []byte) rune {
	if len(b) < 3 || b[0] != 0xED || b[1] < 0xA0 || b[1] > 0xBF || b[2]&0xC0 != 0x80 {
		return 0
	}
	return 0xD000 | rune(b[1]&0x3F)<<6 | rune(b[2]&0x3F)
}
