package where

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Error is an expression that can't be read. It repeats nothing of the
// expression, which may hold somebody's data.
type Error struct {
	// Position is the character it is at, from 1.
	Position int
	// Text says what is wrong and what would be right.
	Text string
}

// Error implements error.
func (e *Error) Error() string { return fmt.Sprintf("at character %d: %s", e.Position, e.Text) }

type tokenKind uint8

const (
	end tokenKind = iota
	word
	symbol
	text
	number
)

type token struct {
	kind tokenKind
	// s is a word, a symbol, or the value of a text.
	s   string
	num float64
	// at is the byte it begins at.
	at int
}

type lexer struct {
	src string
	i   int
}

func (l *lexer) fail(at int, format string, args ...any) error {
	return &Error{Position: utf8.RuneCountInString(l.src[:at]) + 1, Text: fmt.Sprintf(format, args...)}
}

func letter(c byte) bool { return c|0x20 >= 'a' && c|0x20 <= 'z' || c == '_' }
func digit(c byte) bool  { return c >= '0' && c <= '9' }

// next reads one token.
func (l *lexer) next() (token, error) {
	for l.i < len(l.src) && strings.IndexByte(" \t\r\n", l.src[l.i]) >= 0 {
		l.i++
	}
	if l.i == len(l.src) {
		return token{at: l.i}, nil
	}
	from, c := l.i, l.src[l.i]
	switch {
	case letter(c):
		for l.i < len(l.src) && (letter(l.src[l.i]) || digit(l.src[l.i])) {
			l.i++
		}
		return token{kind: word, s: l.src[from:l.i], at: from}, nil
	case digit(c) || c == '.':
		return l.number()
	case c == '"' || c == '\'':
		return l.text()
	}
	if l.i+1 < len(l.src) {
		switch s := l.src[l.i : l.i+2]; s {
		case "==", "!=", "<=", ">=":
			l.i += 2
			return token{kind: symbol, s: s, at: from}, nil
		}
	}
	if strings.IndexByte("()[],<>+-*/%", c) < 0 {
		if c == '=' {
			return token{}, l.fail(from, "want == to compare")
		}
		return token{}, l.fail(from, "this character has no meaning here")
	}
	l.i++
	return token{kind: symbol, s: l.src[from:l.i], at: from}, nil
}

func (l *lexer) number() (token, error) {
	from := l.i
	digits := func() {
		for l.i < len(l.src) && digit(l.src[l.i]) {
			l.i++
		}
	}
	digits()
	if l.i < len(l.src) && l.src[l.i] == '.' {
		l.i++
		digits()
	}
	if l.i < len(l.src) && l.src[l.i]|0x20 == 'e' {
		l.i++
		if l.i < len(l.src) && (l.src[l.i] == '+' || l.src[l.i] == '-') {
			l.i++
		}
		digits()
	}
	f, err := strconv.ParseFloat(l.src[from:l.i], 64)
	if err != nil || l.i < len(l.src) && letter(l.src[l.i]) {
		return token{}, l.fail(from, "want a number, such as 1, 2.5 or 1e6")
	}
	return token{kind: number, num: f, at: from}, nil
}

var escapes = map[byte]string{'"': `"`, '\'': "'", '\\': `\`, '/': "/", 'b': "\b", 'f': "\f", 'n': "\n", 'r': "\r", 't': "\t"}

func (l *lexer) text() (token, error) {
	from, quote := l.i, l.src[l.i]
	var b strings.Builder
	for l.i++; l.i < len(l.src); l.i++ {
		c := l.src[l.i]
		if c == quote {
			l.i++
			return token{kind: text, s: b.String(), at: from}, nil
		}
		if c != '\\' {
			b.WriteByte(c)
			continue
		}
		at := l.i
		if l.i++; l.i == len(l.src) {
			break
		}
		if l.src[l.i] == 'u' {
			r, err := l.unicode(at)
			if err != nil {
				return token{}, err
			}
			b.WriteRune(r)
			continue
		}
		s, ok := escapes[l.src[l.i]]
		if !ok {
			return token{}, l.fail(at, `want one of the escapes \" \' \\ \/ \b \f \n \r \t \u0000`)
		}
		b.WriteString(s)
	}
	return token{}, l.fail(from, "the text has no closing quote")
}

// unicode reads the four digits after \u, and a second escape for the other half
// of a character beyond the first plane. It ends on the last digit.
func (l *lexer) unicode(at int) (rune, error) {
	hex := func(i int) (rune, bool) {
		if i+4 > len(l.src) {
			return 0, false
		}
		n, err := strconv.ParseUint(l.src[i:i+4], 16, 16)
		return rune(n), err == nil
	}
	r, ok := hex(l.i + 1)
	if !ok {
		return 0, l.fail(at, `want four hexadecimal digits after \u`)
	}
	l.i += 4
	if r < 0xd800 || r > 0xdfff {
		return r, nil
	}
	low, ok := rune(0), false
	if strings.HasPrefix(l.src[l.i+1:], `\u`) {
		low, ok = hex(l.i + 3)
	}
	if !ok || r > 0xdbff || low < 0xdc00 || low > 0xdfff {
		return 0, l.fail(at, `want both halves of a character beyond U+FFFF`)
	}
	l.i += 6
	return (r-0xd800)<<10 + (low - 0xdc00) + 0x10000, nil
}
