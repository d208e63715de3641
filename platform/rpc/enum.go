package rpc

import (
	"slices"
	"strings"

	"buf.build/gen/go/bufbuild/protovalidate/protocolbuffers/go/buf/validate"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// EnumRule says in words what a field of an enum may be: by name, as callers write
// it, and not by number.
func EnumRule(f protoreflect.FieldDescriptor) string {
	rules, _ := proto.GetExtension(f.Options(), validate.E_Field).(*validate.FieldRules)
	only := rules.GetEnum()
	if f.IsList() {
		only = rules.GetRepeated().GetItems().GetEnum()
	}
	allowed := func(n protoreflect.EnumNumber) bool {
		in := only.GetIn()
		return (len(in) == 0 || slices.Contains(in, int32(n))) && !slices.Contains(only.GetNotIn(), int32(n))
	}
	var names []string
	values := f.Enum().Values()
	for i := range values.Len() {
		if v := values.Get(i); v.Number() != 0 && allowed(v.Number()) {
			names = append(names, string(v.Name()))
		}
	}
	text := "must be one of " + strings.Join(names, ", ")
	if allowed(0) && !f.IsList() {
		text += ", or left out"
	}
	return text
}
