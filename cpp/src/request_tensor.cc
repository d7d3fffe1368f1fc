#include "quire/request_tensor.h"

#include "wire_structs.h"

namespace quire {

namespace {

// FNV-1a of the fields' names.
uint32_t version() {
  static const uint32_t hash = [] {
    uint32_t value = 2166136261;
    const RequestTensor any;
    for_each_field(any, [&](const char* name, const auto&) {
      for (const char* at = name; *at != '\0'; ++at) value = (value ^ static_cast<uint8_t>(*at)) * 16777619;
      value *= 16777619;  // ends the name
    });
    return value;
  }();
  return hash;
}

}  // namespace

std::string encode_request(const RequestTensor& tensor, uint64_t given) {
  std::string out;
  wire::put(out, version());
  wire::put(out, given);
  uint64_t bit = 1;
  for_each_field(tensor, [&](const char*, const auto& value) {
    if ((given & bit) != 0) wire::write(out, value);
    bit <<= 1;
  });
  return out;
}

void decode_request(std::string_view bytes, RequestTensor& tensor) {
  const auto refuse = [&](const std::string& what) {
    throw InvalidArgument("request", std::to_string(bytes.size()) + " bytes, " + what,
                          "the output 'request' of a tokenizer of this build, or of quire.encode_request()");
  };
  try {
    wire::Reader reader(bytes);
    const auto theirs = reader.get<uint32_t>();
    if (theirs != version()) {
      refuse("version " + std::to_string(theirs) + ", not " + std::to_string(version()));
    }
    auto given = reader.get<uint64_t>();
    for_each_field(tensor, [&](const char* name, auto& value) {
      if ((given & 1) != 0) {
        wire::read(reader, value);
        check_given(name, name, value);
      }
      given >>= 1;
    });
    if (given != 0) refuse("with fields that are not known");
    reader.expect_end();
  } catch (const InvalidArgument&) {
    throw;
  } catch (const Error& error) {
    refuse(error.what());
  }
}

}  // namespace quire
