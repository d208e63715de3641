package rpc

import (
	"regexp"
	"strings"
)

// named are patterns that are no names of resources, in words.
var named = map[string]string{
	`^([0-9]{4}-(0[1-9]|1[0-2]))?$`:     "must be a month as yyyy-mm",
	`^([0-9]{4}-[0-9]{2}-[0-9]{2})?$`:   "must be a day as yyyy-mm-dd",
	`^[A-Za-z0-9-]*$`:                   "may have letters, digits and - only",
	`^[^%><!|&.:;$'"` + "\\\\" + `#]*$`: `must be without the characters that CleverTap refuses: % > < ! | & . : ; $ ' " \ #`,
}

var (
	resourceName = regexp.MustCompile(`^\^\(?(([a-zA-Z]+/\[0-9\]\{1,18\}/?)+)\)?(\?)?\$$`)
	number       = regexp.MustCompile(`([a-zA-Z]+)/\[0-9\]\{1,18\}`)
)

// PatternRule says in words what a text of a pattern must be: "" for a pattern that
// is not known.
func PatternRule(pattern string) string {
	if words, ok := named[pattern]; ok {
		return words
	}
	m := resourceName.FindStringSubmatch(pattern)
	if m == nil {
		return ""
	}
	form := number.ReplaceAllStringFunc(m[1], func(part string) string {
		collection, _, _ := strings.Cut(part, "/")
		return collection + "/{" + strings.TrimSuffix(collection, "s") + "}"
	})
	words := "must be " + form + ", with numbers, e.g. " + number.ReplaceAllString(m[1], "$1/1")
	if m[3] != "" {
		words += ", or empty"
	}
	return words
}
