// The receipts of chunks, finished: a request ends with its text.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <vector>

#include "api.h"
#include "chunk.h"
#include "quire/receipt.h"

namespace quire::triton {

// JSON; "" where the chunk has none.
inline std::string finish_receipt(const Chunk& chunk, uint64_t text_ns) {
  if (chunk.receipt.empty()) return "";
  Receipt receipt;
  std::memcpy(&receipt, chunk.receipt.data(), sizeof(receipt));
  return to_json(receipt, static_cast<int64_t>(text_ns));
}

// The output `receipt`, one element for each chunk, where any has one.
inline void add_receipts(ResponseBuilder& response, std::span<const Chunk> chunks, uint64_t text_ns) {
  if (std::all_of(chunks.begin(), chunks.end(), [](const Chunk& chunk) { return chunk.receipt.empty(); })) {
    return;
  }
  std::vector<std::string> receipts;
  for (const Chunk& chunk : chunks) receipts.push_back(finish_receipt(chunk, text_ns));
  response.add_strings("receipt", receipts.size(), [&](size_t i) { return std::string_view(receipts[i]); });
}

}  // namespace quire::triton
