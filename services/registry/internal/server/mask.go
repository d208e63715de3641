package server

import (
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	"github.com/cohortbridge/cohortbridge/platform/fault"
)

// maskPaths returns which of the allowed paths an update changes: those the mask
// names, or, without a mask, those that are set. A path that names a message
// stands for the allowed paths below it. Ignored paths may be named: a resource
// that is sent back as it was read carries them.
func maskPaths(m *fieldmaskpb.FieldMask, msg proto.Message, allowed, ignored []string) ([]string, error) {
	var out []string
	if len(m.GetPaths()) == 0 {
		for _, p := range allowed {
			if isSet(msg.ProtoReflect(), strings.Split(p, ".")) {
				out = append(out, p)
			}
		}
		return out, nil
	}
	for _, p := range m.GetPaths() {
		n := len(out)
		for _, a := range allowed {
			if a == p || strings.HasPrefix(a, p+".") {
				out = append(out, a)
			}
		}
		if len(out) == n && !slices.Contains(ignored, p) {
			return nil, fault.Field("update_mask", "%q can't be changed; want some of %s", p, strings.Join(allowed, ", "))
		}
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

func isSet(m protoreflect.Message, path []string) bool {
	fd := m.Descriptor().Fields().ByName(protoreflect.Name(path[0]))
	if fd == nil || !m.Has(fd) {
		return false
	}
	return len(path) == 1 || isSet(m.Get(fd).Message(), path[1:])
}
