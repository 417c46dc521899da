// How similar photographs are to the first one, in C++: onnx_embed model.onnx PHOTO.ppm PHOTO.ppm ...
// `opendino export RUN --to onnx --photographs True --out model.onnx` writes the file, which resizes, crops and normalizes
// the photographs itself. Any decoder that gives RGB bytes will do; here it is the header of a binary .ppm file.
// Build: g++ -std=c++17 onnx_embed.cpp -I ONNXRUNTIME/include -L ONNXRUNTIME/lib -lonnxruntime -o onnx_embed
#include <onnxruntime_cxx_api.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

std::vector<float> embed(Ort::Session& session, const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string kind;
  int64_t width = 0, height = 0, most = 0;
  if (!(file >> kind >> width >> height >> most) || kind != "P6" || most != 255 || width < 1 || height < 1)
    throw std::runtime_error(path + " is not a binary .ppm file of 8 bits");
  file.get();  // the one byte between the header and the pixels
  std::vector<uint8_t> pixels(width * height * 3);
  if (!file.read(reinterpret_cast<char*>(pixels.data()), pixels.size())) throw std::runtime_error(path + " is cut short");
  const int64_t shape[] = {1, height, width, 3};
  auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  auto images = Ort::Value::CreateTensor<uint8_t>(memory, pixels.data(), pixels.size(), shape, 4);
  const char *input = "images", *output = "cls";
  auto found = session.Run(Ort::RunOptions{}, &input, &images, 1, &output, 1);
  const float* vector = found[0].GetTensorData<float>();
  return {vector, vector + found[0].GetTensorTypeAndShapeInfo().GetElementCount()};
}

int main(int count, char** words) try {
  if (count < 3) throw std::runtime_error("usage: onnx_embed model.onnx PHOTO.ppm PHOTO.ppm ...");
  Ort::Env environment;
  Ort::Session session(environment, words[1], Ort::SessionOptions{});
  const std::vector<float> first = embed(session, words[2]);
  for (int i = 2; i < count; ++i) {
    const std::vector<float> vector = embed(session, words[i]);
    const auto dot = [&](const auto& a, const auto& b) { return std::inner_product(a.begin(), a.end(), b.begin(), 0.0); };
    std::printf("%.4f %s\n", dot(first, vector) / std::sqrt(dot(first, first) * dot(vector, vector)), words[i]);
  }
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
