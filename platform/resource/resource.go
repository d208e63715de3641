// Package resource reads and writes resource names such as
// projects/7/connectors/3, whose ids are decimal numbers.
package resource

import (
	"encoding/base64"
	"strconv"
	"strings"

	"github.com/cohortbridge/cohortbridge/platform/fault"
)

// IDs parses name as collection/id pairs in the order of collections and
// returns the ids. field names it in the error.
func IDs(field, name string, collections ...string) ([]int64, error) {
	parts := strings.Split(name, "/")
	ok := len(parts) == 2*len(collections)
	ids := make([]int64, len(collections))
	for i := 0; ok && i < len(collections); i++ {
		ids[i], ok = number(parts[2*i+1])
		ok = ok && parts[2*i] == collections[i]
	}
	if !ok {
		want := make([]string, len(collections))
		for i, c := range collections {
			want[i] = c + "/{id}"
		}
		return nil, fault.Field(field, "want %s with numbers for the ids", strings.Join(want, "/"))
	}
	return ids, nil
}

// number reads an id as Name writes it: no sign, no leading zeros, so that a
// resource has one name.
func number(s string) (int64, bool) {
	id, err := strconv.ParseInt(s, 10, 64)
	return id, err == nil && id >= 0 && strconv.FormatInt(id, 10) == s
}

// Name joins collection and id pairs: Name("projects", 7, "connectors", 3).
func Name(pairs ...any) string {
	var b strings.Builder
	for i, p := range pairs {
		if i > 0 {
			b.WriteByte('/')
		}
		switch p := p.(type) {
		case string:
			b.WriteString(p)
		case int64:
			b.WriteString(strconv.FormatInt(p, 10))
		}
	}
	return b.String()
}

// PageSize is the page size asked for, or the default, within the maximum.
func PageSize(asked int32, def, maximum int) int {
	if asked <= 0 {
		return def
	}
	return min(int(asked), maximum)
}

// PageToken parses a token that is the last id of the page before.
func PageToken(token string) (int64, error) {
	if token == "" {
		return 0, nil
	}
	id, ok := number(token)
	if !ok {
		return 0, fault.Field("page_token", "is not one that this call returned")
	}
	return id, nil
}

// NextPage cuts a list that was read with one row more than size and returns
// the token of the next page, empty on the last.
func NextPage[T any](list []T, size int, id func(T) int64) ([]T, string) {
	if len(list) <= size {
		return list, ""
	}
	list = list[:size]
	return list, strconv.FormatInt(id(list[size-1]), 10)
}

// NextPair is the token of a page after a row whose key is two texts.
func NextPair(a, b string) string {
	return base64.RawURLEncoding.EncodeToString([]byte(strconv.Itoa(len(a)) + ":" + a + b))
}

// PairToken parses a token of NextPair; the empty one is the first page.
func PairToken(token string) (a, b string, err error) {
	if token == "" {
		return "", "", nil
	}
	raw, err := base64.RawURLEncoding.DecodeString(token)
	size, texts, ok := strings.Cut(string(raw), ":")
	n, aerr := strconv.Atoi(size)
	if err != nil || aerr != nil || !ok || n < 0 || n > len(texts) {
		return "", "", fault.Field("page_token", "is not one that this call returned")
	}
	return texts[:n], texts[n:], nil
}
