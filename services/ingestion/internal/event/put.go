package event

import (
	"bytes"

	"github.com/go-json-experiment/json/jsontext"
)

// Put makes value, JSON text, the member name of props, an object as Decode left
// it, in place of one that the sender gave: an object never has a name twice.
// It returns a changed copy.
func Put(props []byte, name, value string) []byte {
	b := make([]byte, 0, len(props)+len(name)+len(value)+4)
	b = append(b, '{')
	member := func(name, value []byte) {
		if len(b) > 1 {
			b = append(b, ',')
		}
		b = append(append(append(b, name...), ':'), value...)
	}
	if !mayHave(props, name) {
		b = append(b, props[1:len(props)-1]...)
	} else {
		dec := jsontext.NewDecoder(bytes.NewBuffer(props), Options...)
		_, _ = dec.ReadToken() // Decode wrote it: it reads well
		for dec.PeekKind() == '"' {
			key, _ := dec.ReadValue()
			key = key.Clone()
			text, _ := jsontext.AppendUnquote(nil, key)
			val, err := dec.ReadValue()
			if err != nil {
				break
			}
			if string(text) != name {
				member(key, val)
			}
		}
	}
	quoted, _ := jsontext.AppendQuote(nil, name)
	member(quoted, []byte(value))
	return append(b, '}')
}

// mayHave is a cheap look for a name, which may be written with escapes.
func mayHave(props []byte, name string) bool {
	return bytes.Contains(props, []byte(name)) || bytes.Contains(props, []byte(`\u`))
}
